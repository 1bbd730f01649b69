#include "calc.h"

int precedence(char op)
{
    switch (op) {
    case '^':
        return 3;
    case '*':
    case '/':
        return 2;
    default:
        return 1;
    }
}

int right_associative(char op)
{
    return op == '^';
}
