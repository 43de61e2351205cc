"""`medssr bench labels`: what label sources and the calibrated threshold give, on real votes with known truth."""
