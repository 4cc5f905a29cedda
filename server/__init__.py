"""What runs at the coordinator: rounds, admission, aggregation."""
