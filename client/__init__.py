"""What runs at a site: data in, clipped and noised update out."""
