"""The networks of the series, how they are trained, and the convolution-BN units of any network."""
