#include "calc.h"
#include <stdlib.h>

int stack_push(struct stack *stack, double value)
{
    if (stack->count == stack->room) {
        size_t room = stack->room == 0 ? 16 : stack->room * 2;
        double *items = realloc(stack->items, room * sizeof *items);

        if (items == NULL) {
            complain("out of memory");
            return -1;
        }
        stack->items = items;
        stack->room = room;
    }
    stack->items[stack->count++] = value;
    return 0;
}

int stack_pop(struct stack *stack, double *value)
{
    if (stack->count == 0) {
        complain("an operand is missing");
        return -1;
    }
    *value = stack->items[--stack->count];
    return 0;
}

void stack_free(struct stack *stack)
{
    free(stack->items);
}
