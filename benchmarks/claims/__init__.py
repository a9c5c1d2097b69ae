"""The paper's claims against the runs of a comparison."""
