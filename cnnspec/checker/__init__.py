"""From Model to Graph: expand blocks and repeats, compute shapes, verify contracts."""
