"""An ablation's rows compared: frames, comparisons, attribution, tables and figures."""
