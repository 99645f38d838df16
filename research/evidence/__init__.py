"""What class vectors and the vote gain by partition, epsilon and seed: tables of docs/explanation/evidence.md."""
