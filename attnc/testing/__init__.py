"""What the command line, the tests and the benchmarks share: inputs for any spec, the numeric check, timing, peers."""
