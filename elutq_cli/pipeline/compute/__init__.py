"""Where stages compute: arrays, large products in tiles, threads, and inner loops."""
