#include "calc.h"
#include <math.h>

int apply(char op, double left, double right, double *result)
{
    switch (op) {
    case '+':
        *result = left + right;
        return 0;
    case '-':
        *result = left - right;
        return 0;
    case '*':
        *result = left * right;
        return 0;
    case '/':
        if (right == 0) {
            complain("division by zero");
            return -1;
        }
        *result = left / right;
        return 0;
    case '^':
        *result = pow(left, right);
        return 0;
    default:
        complain("there is no operator '%c'", op);
        return -1;
    }
}
