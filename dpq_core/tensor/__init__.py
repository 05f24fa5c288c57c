"""One weight as it is stored: layout, grouping into subvectors, packing, basis, and its parts."""
