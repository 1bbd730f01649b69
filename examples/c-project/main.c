#include "calc.h"

int main(int argc, char **argv)
{
    struct tokens infix = {0}, postfix = {0};
    double result;
    int failed = 1;

    if (argc != 2) {
        usage(argv[0]);
        return 2;
    }
    if (lex(argv[1], &infix) == 0 && to_postfix(&infix, &postfix) == 0 && evaluate(&postfix, &result) == 0) {
        print_number(result);
        failed = 0;
    }
    tokens_free(&infix);
    tokens_free(&postfix);
    return failed;
}
