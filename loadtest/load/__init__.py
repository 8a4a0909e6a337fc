"""What a load test asks and records: workload, Triton's statistics, report."""
