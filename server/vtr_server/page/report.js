// A job's report: fetched with the key, which a link would not send, and shown from memory.

import { getBlob, getText } from "./api.js";

const OWN_FILE = /^[A-Za-z0-9][A-Za-z0-9._-]*$/; // beside the page; not an address, not an anchor
const made = []; // object URLs of the report shown last

/** The report of a job with every file of it as an object URL: {url, figures: [{alt, url}], urls}. */
export async function load(id) {
  const folder = `v1/jobs/${id}/report/`;
  const urls = new Map();
  // the policy of this page goes for what it makes, and allows no style that is written inline
  const text = (await getText(folder)).replace(/<style>([^]*?)<\/style>/g, (_, style) => {
    const url = URL.createObjectURL(new Blob([style], { type: "text/css" }));
    urls.set(url, url);
    return `<link rel="stylesheet" href="${url}">`;
  });
  const page = new DOMParser().parseFromString(text, "text/html");
  const links = [...page.querySelectorAll("img[src], a[href]")].map((node) => [node, node.localName === "img" ? "src" : "href"]);
  for (const [node, attribute] of links) {
    const name = node.getAttribute(attribute);
    if (!OWN_FILE.test(name)) continue;
    if (!urls.has(name)) urls.set(name, URL.createObjectURL(await getBlob(folder + name)));
    node.setAttribute(attribute, urls.get(name));
    if (name.endsWith(".csv")) node.setAttribute("download", name);
  }
  const whole = `<!doctype html>${page.documentElement.outerHTML}`;
  const url = URL.createObjectURL(new Blob([whole], { type: "text/html" }));
  const figures = [...page.querySelectorAll("img[src^='blob:']")].map(({ alt, src }) => ({ alt, url: src }));
  return { url, figures, urls: [url, ...urls.values()] };
}

/** Gives back the files of the reports before, and keeps those of this one. */
export function keep(report) {
  for (const url of made.splice(0)) URL.revokeObjectURL(url);
  made.push(...report.urls);
}
