#include "calc.h"

/* Dijkstra's shunting yard. */
int to_postfix(const struct tokens *in, struct tokens *out)
{
    struct tokens held = {0};
    int failed = -1;

    for (size_t i = 0; i < in->count; i++) {
        struct token token = in->items[i];

        if (token.kind == NUMBER || token.kind == NAME) {
            if (tokens_push(out, token) != 0)
                goto done;
            continue;
        }
        while (held.count > 0 && token.kind != OPEN) {
            struct token top = held.items[held.count - 1];

            if (top.kind == OPEN)
                break;
            if (token.kind == OPERATOR && precedence(top.text[0]) < precedence(token.text[0]) + right_associative(token.text[0]))
                break;
            held.count--;
            if (tokens_push(out, top) != 0)
                goto done;
        }
        if (token.kind == CLOSE) {
            if (held.count == 0) {
                complain("a ')' has no '('");
                goto done;
            }
            held.count--;
        } else if (tokens_push(&held, token) != 0) {
            goto done;
        }
    }
    while (held.count > 0) {
        struct token top = held.items[--held.count];

        if (top.kind == OPEN) {
            complain("a '(' has no ')'");
            goto done;
        }
        if (tokens_push(out, top) != 0)
            goto done;
    }
    failed = 0;
done:
    tokens_free(&held);
    return failed;
}
