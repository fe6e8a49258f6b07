"""What differs between the releases and kinds of the libraries below, one module for each."""
