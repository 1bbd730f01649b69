#include "calc.h"
#include <stdlib.h>

int tokens_push(struct tokens *tokens, struct token token)
{
    if (tokens->count == tokens->room) {
        size_t room = tokens->room == 0 ? 16 : tokens->room * 2;
        struct token *items = realloc(tokens->items, room * sizeof *items);

        if (items == NULL) {
            complain("out of memory");
            return -1;
        }
        tokens->items = items;
        tokens->room = room;
    }
    tokens->items[tokens->count++] = token;
    return 0;
}

void tokens_free(struct tokens *tokens)
{
    free(tokens->items);
}
