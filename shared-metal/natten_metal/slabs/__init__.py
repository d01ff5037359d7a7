"""Problems larger than memory: slabs of them are read, computed and written one after another."""
