"""The world of flat shapes that micro was trained on."""
