"""What class vectors and the vote gain by partition, epsilon and seed: tables of docs/results/class-vectors.md."""
