/* Masks as run lengths, columns from the left, unset pixels first: as anyi2v.tracks.masks.encode writes them. */

function encodeMask(pixels, width, height) {
  const counts = [];
  let [run, set] = [0, 0];
  for (let x = 0; x < width; x += 1) {
    for (let y = 0; y < height; y += 1) {
      const value = pixels[y * width + x];
      if (value !== set) {
        counts.push(run);
        [run, set] = [0, value];
      }
      run += 1;
    }
  }
  counts.push(run);
  return { size: [height, width], counts };
}

/** The inverse: Uint8Array of 0 and 1, row after row. */
function decodeMask(mask) {
  const [height, width] = mask.size;
  const pixels = new Uint8Array(width * height);
  let place = 0;
  mask.counts.forEach((count, k) => {
    if (k % 2) for (let n = place; n < place + count; n += 1) pixels[(n % height) * width + Math.floor(n / height)] = 1;
    place += count;
  });
  return pixels;
}

/** Sets (or clears) the pixels of a disc around a point. */
function paintDisc(pixels, width, height, x, y, radius, value) {
  for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(height - 1, Math.ceil(y + radius)); row += 1) {
    for (let col = Math.max(0, Math.floor(x - radius)); col <= Math.min(width - 1, Math.ceil(x + radius)); col += 1) {
      if ((col + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= radius ** 2) pixels[row * width + col] = value;
    }
  }
}

/** The box around the set pixels, in a frame of frameWidth x frameHeight; null if there are none. */
function maskBox(pixels, width, height, frameWidth, frameHeight) {
  let [x0, y0, x1, y1] = [width, height, -1, -1];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (pixels[y * width + x]) [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x), Math.max(y1, y)];
    }
  }
  const [sx, sy] = [frameWidth / width, frameHeight / height];
  return x1 < 0 ? null : [x0 * sx, y0 * sy, (x1 + 1) * sx, (y1 + 1) * sy];
}

/** A picture of the mask in a colour, as a data URL. */
function maskPicture(pixels, width, height, [red, green, blue]) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  pixels.forEach((value, k) => image.data.set([red, green, blue, value ? 130 : 0], 4 * k));
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}
