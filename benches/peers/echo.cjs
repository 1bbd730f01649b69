// The module whose function the peer `jest-worker` runs in its workers.
module.exports.echo = (text) => text;
