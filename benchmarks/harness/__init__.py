"""The harness of the benchmarks: contenders, rounds, results and charts."""
