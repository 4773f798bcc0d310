"""Which rule should name the winner of a study, and when are there enough trials? On recorded learning curves.

    python benchmarks/selection.py [--quick] [--curves DIR] [--json FILE]

This text was written before the curves of `curves/` were looked at; `curves.parquet`, where the question came from, had
been. Each table is a set of photos with one network; `record_curves.py` made them. Configurations that diverged are left
out, for no rule names one.

**A simulated study** draws n = 4, 8 or 16 completed configurations without replacement, and a rule names one of them.
Its score is the named one's test accuracy after the last epoch; its loss is what the best test accuracy among those
drawn (the oracle) has more. All arms see the same 2,000 studies for each set and n (seed 0). The arms:

    a  today   best val_accuracy of the best epoch, ties by val_loss. Also shown with the best epoch's weights, a*
    b  last    best val_accuracy of the last epoch, ties by val_loss
    c  near    lowest val_loss of the last epoch among those whose val_accuracy then is within one standard error of the
               best of them (binomial: sqrt(p (1 - p) / number of validation photos), p the best)
    d  nll     lowest val_loss of the last epoch at the temperature that suits the same logits best
    e  near+T  as c, by the loss of d
    f  mean3   best mean val_accuracy of the last three epochs, ties by val_loss of the last
    g  near3   as c, with means over the last three epochs

The old table has no logits: d and e are not there, nor is a*.
**The interval** of an arm's mean difference to a is the middle 95 % over 200 pools of configurations that were drawn
from the recorded ones with replacement, each with 2,000 studies of its own: configurations are the units.
**The decision.** An arm's gain on a set is its mean difference to a over the three n. Arms are struck out whose mean gain
over their sets is below 0.1 points or which lose 0.3 or more on any set. Of the rest the one that is the best on most
sets is taken, among equals that of the larger mean gain. If none is left, today's stays.
**Smaller validation sets.** b, c, d, e, which need the last logits only, with half of the photos of each class, of 20 such
halves in turn; differences are to b. They show whether the choice holds, and decide nothing.
**Another metric.** a, b, c, e with balanced accuracy in the place of accuracy, for validation, test and oracle. The best
epoch's is from the table. Decides nothing either.

**Enough trials?** A study runs configurations in a random order, one at a time, through the project's own rungs (`--asha`
settings: first rung 1, factor 4) and stops as `delta_tune/search/enough_trials.py` says, or after 32. The rule's settings
are chosen on the old table alone. It has proved itself if over the new sets it takes at most half of the epochs of 32
trials, and its winner is at most 0.2 points of mean below theirs. Studies that stop after a fixed number stand beside it.
"""
