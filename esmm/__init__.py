"""ESMM: click, conversion and their product, learned over all impressions."""
