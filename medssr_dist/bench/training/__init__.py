"""medssr bench training and update: a step beside stock OpenRLHF's."""
