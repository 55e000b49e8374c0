"""The synthetic world of flat shapes that micro was trained on."""
