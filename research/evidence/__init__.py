"""What class vectors and the vote bring, over partitions, epsilons and seeds; the tables of docs/explanation/evidence.md."""
