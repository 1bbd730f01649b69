#include "calc.h"

int evaluate(const struct tokens *postfix, double *result)
{
    struct stack stack = {0};
    int failed = -1;

    for (size_t i = 0; i < postfix->count; i++) {
        const struct token *token = &postfix->items[i];
        double left, right, value = token->value;

        if (token->kind == NAME && constant(token->text, &value) != 0)
            goto done;
        if (token->kind == OPERATOR) {
            if (stack_pop(&stack, &right) != 0 || stack_pop(&stack, &left) != 0)
                goto done;
            if (apply(token->text[0], left, right, &value) != 0)
                goto done;
        }
        if (stack_push(&stack, value) != 0)
            goto done;
    }
    failed = stack_pop(&stack, result);
done:
    stack_free(&stack);
    return failed;
}
