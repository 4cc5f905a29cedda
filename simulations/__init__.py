"""A consortium on one machine: the same two apps, engines, scenarios, benchmark, report."""
