"""The baselines: one file a method, each found by its entry point as a third party's would be."""
