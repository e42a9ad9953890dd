"""An ablation evaluated: comparisons of variants, attribution to components, tables and figures."""
