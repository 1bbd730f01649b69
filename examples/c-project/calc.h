/* A pocket calculator: `calc '1 + 2 * 3'` prints 7. Something small for the example to build. */
#ifndef CALC_H
#define CALC_H

#include <stddef.h>

enum kind { NUMBER, NAME, OPERATOR, OPEN, CLOSE, END };

struct token { enum kind kind; double value; char text[16]; };
struct tokens { struct token *items; size_t count, room; };
struct stack { double *items; size_t count, room; };

int lex(const char *text, struct tokens *out);
int tokens_push(struct tokens *tokens, struct token token);
void tokens_free(struct tokens *tokens);
int stack_push(struct stack *stack, double value);
int stack_pop(struct stack *stack, double *value);
void stack_free(struct stack *stack);
int precedence(char op);
int right_associative(char op);
int to_postfix(const struct tokens *in, struct tokens *out);
int evaluate(const struct tokens *postfix, double *result);
int apply(char op, double left, double right, double *result);
int constant(const char *name, double *value);
int parse_number(const char **text, double *value);
void complain(const char *format, ...);
void print_number(double value);
void usage(const char *program);

#endif
