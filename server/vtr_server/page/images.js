// Images as they are sent: data URLs, scaled down only where the server would refuse them.

const SENT_AS_IS = new Set(["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"]);

/**
 * Reads a file. Returns {name, url, picture, note}: the data URL to send, a decoded <img> of
 * exactly that, and what was done to it in words, or "". Raises Error where it is no image.
 */
export async function loadImage(file, mostPixels) {
  const name = file.name || "pasted image";
  let url = await dataUrl(file);
  let picture = await decoded(url, name);
  const { naturalWidth: width, naturalHeight: height } = picture;
  if (width * height > mostPixels) {
    const scale = Math.sqrt(mostPixels / (width * height));
    const [w, h] = [Math.max(1, Math.floor(width * scale)), Math.max(1, Math.floor(height * scale))];
    url = redrawn(picture, w, h, file.type === "image/png" ? "image/png" : "image/jpeg");
    picture = await decoded(url, name);
    const limit = `${mostPixels.toLocaleString("en")} pixels`;
    const note = `${name} was scaled down from ${width} × ${height} to ${w} × ${h}: this server takes at most ${limit} an image.`;
    return { name, url, picture, note };
  }
  if (!SENT_AS_IS.has(file.type)) {
    url = redrawn(picture, width, height, "image/png"); // a form that only browsers know
    picture = await decoded(url, name);
    return { name, url, picture, note: `${name} was converted to PNG.` };
  }
  return { name, url, picture, note: "" };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name || "The file"} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

async function decoded(url, name) {
  const picture = new Image();
  picture.src = url;
  try {
    await picture.decode();
  } catch {
    throw new Error(`${name} is no image that this browser can read; use PNG, JPEG or WebP.`);
  }
  return picture;
}

function redrawn(picture, width, height, type) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").drawImage(picture, 0, 0, width, height);
  return canvas.toDataURL(type, 0.92);
}
