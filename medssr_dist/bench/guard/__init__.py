"""The collapse guard on runs with wrong labels and on sound runs."""
