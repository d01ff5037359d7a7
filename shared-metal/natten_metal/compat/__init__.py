"""NATTEN's older generations and 0.3 of these packages: their call forms, translated."""
