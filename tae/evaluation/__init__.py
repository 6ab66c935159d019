"""The evaluation protocol, and what it leaves behind: reports, pages, comparisons."""
