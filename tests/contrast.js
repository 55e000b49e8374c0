/* Contrast of what a page shows, after WCAG 2.2: texts (1.4.3) and borders of fields (1.4.11).
Returns descriptions of all elements below the required ratio. */
() => {
  const parse = (text) => {
    const numbers = text.match(/[\d.]+%?/g).map(Number);
    const scale = text.startsWith("color(") ? 255 : 1;
    return [...numbers.slice(0, 3).map((value) => value * scale), numbers[3] === undefined ? 1 : numbers[3]];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((value, c) => value * a + below[c] * (1 - a));
  /** Colour behind an element's content, its own background included. */
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const opacity = (node) => (node ? Number(getComputedStyle(node).opacity) * opacity(node.parentElement) : 1);
  const found = [];
  let texts = 0;
  let fields = 0;
  const check = (node, colour, ground, least, kind) => {
    const shown = over([...colour.slice(0, 3), colour[3] * opacity(node)], ground);
    const value = ratio(shown, ground);
    if (value < least) found.push(`${kind} ${value.toFixed(2)} < ${least}: ${(node.innerText || node.outerHTML).slice(0, 60)}`);
  };
  for (const node of document.querySelectorAll("body *")) {
    const style = getComputedStyle(node);
    if (!node.checkVisibility({ visibilityProperty: true }) || node.closest("svg") || node.matches(":disabled, :disabled *")) continue;
    const own = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.textContent.trim());
    const field = node.matches("input:not([type=file]), textarea, select");
    const { width, height } = node.getBoundingClientRect();
    if (width < 2 || height < 2) continue;
    if (own || (field && node.type !== "range" && node.type !== "checkbox")) {
      const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
      texts += 1;
      check(node, parse(style.color), behind(node), large ? 3 : 4.5, "text");
    }
    if (field && node.type !== "range" && !node.readOnly) {
      // the border is the field's own, or that of a frame around it
      let frame = node;
      for (let k = 0; k < 5 && !parseFloat(getComputedStyle(frame).borderTopWidth); k += 1) frame = frame.parentElement;
      const { borderTopWidth, borderTopColor } = getComputedStyle(frame);
      fields += 1;
      if (!parseFloat(borderTopWidth)) found.push(`field without a border: ${node.outerHTML.slice(0, 80)}`);
      else check(node, parse(borderTopColor), behind(frame.parentElement), 3, "border");
    }
  }
  return { found, texts, fields };
};
