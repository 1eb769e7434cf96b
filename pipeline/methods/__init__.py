"""The methods of the papers: pure tensor maths without files, devices or hidden randomness."""
