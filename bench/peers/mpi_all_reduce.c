// mpi_all_reduce BYTES...: what danceflux_collectives_bench measures, by MPI_Allreduce. Built with mpicc, run by mpirun.
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float number(long i, int rank) { return (float)((i * 7 + rank * 5) % 13 - 6); }

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank, size;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  for (int at = 1; at < argc; ++at) {
    const long bytes = atol(argv[at]), count = bytes / 4;
    float* x = aligned_alloc(64, (size_t)(bytes + 63) / 64 * 64);
    for (long i = 0; i < count; ++i) x[i] = number(i, rank);
    MPI_Allreduce(MPI_IN_PLACE, x, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    long wrong = 0;
    for (long i = 0; i < count; ++i) {
      float sum = 0;
      for (int other = 0; other < size; ++other) sum += number(i, other);
      wrong += x[i] != sum;
    }
    memset(x, 0, (size_t)bytes);
    MPI_Allreduce(MPI_IN_PLACE, x, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    MPI_Barrier(MPI_COMM_WORLD);
    long calls = (200L << 20) / (bytes + 1);
    calls = calls < 4 ? 4 : calls > 500 ? 500 : calls;
    const double start = MPI_Wtime();
    for (long call = 0; call < calls; ++call)
      MPI_Allreduce(MPI_IN_PLACE, x, (int)count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    const double time = (MPI_Wtime() - start) * 1000 / (double)calls;
    if (rank == 0) printf("{\"bytes\": %ld, \"ms\": %g, \"wrong\": %ld}\n", bytes, time, wrong);
    free(x);
  }
  MPI_Finalize();
  return 0;
}
