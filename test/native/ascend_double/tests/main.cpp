#include "harness.h"

int main(int argc, char** argv) { return danceflux::test::run(argc, argv); }
