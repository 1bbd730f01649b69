// The peer `jest-worker` of the bench `pool`. Arguments: the directory of node_modules, tasks, bytes, workers. Prints tasks per second.
const path = require("path");
const { Worker } = require(path.resolve(process.argv[2], "node_modules/jest-worker"));

async function main() {
  const [tasks, bytes, numWorkers] = process.argv.slice(3).map(Number);
  const payload = "x".repeat(bytes);
  const pool = new Worker(path.join(__dirname, "echo.cjs"), { numWorkers, exposedMethods: ["echo"] });
  const run = (count) => Promise.all(Array.from({ length: count }, () => pool.echo(payload)));
  await run(10 * numWorkers); // warm-up: the workers start with the first tasks
  const began = process.hrtime.bigint();
  const answers = await run(tasks);
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  if (answers.some((answer) => answer !== payload)) throw new Error("the answer differs from the request");
  console.log(tasks / seconds);
  await pool.end();
}

main();
