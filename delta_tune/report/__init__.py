"""`report.html` and the sentences that sum up a study."""
