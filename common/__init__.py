"""What both sides must agree on: errors, data, recommender, mechanism, accounting, wire."""
