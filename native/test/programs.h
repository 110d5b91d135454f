// All tests of a flavour in one program (Makefile), which runs the test by whose name it was
// called.
#pragma once

#include <cstdio>
#include <cstring>

struct TestProgram {
  const char* name;
  int (*run)(int, char**);
};

template <int (*kMain)()>
int run(int, char**) {
  return kMain();
}

template <int (*kMain)(int, char**)>
int run(int argc, char** argv) {
  return kMain(argc, argv);
}

#define TEST_PROGRAM(name) \
  { #name, run < name::main> }

template <size_t kCount>
int run_called(const TestProgram (&programs)[kCount], int argc, char** argv) {
  const char* slash = strrchr(argv[0], '/');
  const char* name = slash ? slash + 1 : argv[0];
  for (const TestProgram& program : programs)
    if (strcmp(program.name, name) == 0) return program.run(argc, argv);
  fprintf(stderr, "there is no test %s\n", name);
  return 2;
}
