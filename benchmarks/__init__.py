"""What the registry costs. Run from the root of the repository; not part of the distribution."""
