"""The call forms of NATTEN's older generations and of 0.3 of these packages, translated into today's."""
