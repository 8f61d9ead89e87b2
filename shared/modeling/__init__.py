"""Model parts that several projects share."""
