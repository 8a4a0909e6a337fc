"""The parts of a load test: workload, recording, Triton's statistics, report."""
