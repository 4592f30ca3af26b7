"""Tables, figures and one page: a pure function of the results."""
