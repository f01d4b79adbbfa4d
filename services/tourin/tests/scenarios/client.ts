// What somebody writes who generates a client from the API description. Compiled, then run against the mesh
// whose URL is the argument.
import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Overview = components["schemas"]["TourSpotOverview"];

declare const process: { argv: string[] };

function check(condition: unknown, what: string): asserts condition {
  if (!condition) throw new Error(what);
}

const baseUrl = process.argv[2];
check(baseUrl, "the URL is missing");
const client = createClient<paths>({ baseUrl });

const found = await client.GET("/api/tour-spots", {
  params: { query: { tags: ["자연"], sort: "name-desc", pageSize: 3 } },
});
const spots: Overview[] | undefined = found.data;
const spot = spots?.[0];
check(spot && spots.length === 3, "three spots");
const shown: { name: string; imageUrl: string | null; lat: number } = spot;
check(shown.name, "a name");

const account = {
  id: "traveller9",
  password: "Tour1n!pass",
  name: "Traveller",
  email: "traveller9@example.com",
};
const signedUp = await client.POST("/api/auth/signup", { body: account });
check(signedUp.data?.id === account.id, "an account");
// @ts-expect-error The document says that a password is needed.
const refused = await client.POST("/api/auth/login", { body: { id: account.id } });
const refusal: components["schemas"]["ErrorBody"] | undefined = refused.error;
check(refused.response.status === 422 && refusal?.error === "invalid", "a refusal");

const loggedIn = await client.POST("/api/auth/login", {
  body: { id: account.id, password: account.password },
});
check(loggedIn.data?.accessToken, "a session, and its tokens for a call without cookies");
const token: string = loggedIn.data.accessToken;
client.use({
  onRequest: ({ request }) => request.headers.set("authorization", `Bearer ${token}`),
});

const kept = await client.POST("/api/users/{userId}/bookmarks", {
  params: { path: { userId: account.id } },
  body: { tourSpotId: spot.id },
});
check(kept.data?.tourSpotOverview.name === spot.name, "a bookmark");
// @ts-expect-error There is no such call.
await client.GET("/api/no-such-path");

const missing = await client.GET("/api/tour-spots/{id}", {
  params: { path: { id: "nowhere" } },
  headers: { "accept-language": "ko" },
});
const message: string | undefined = missing.error?.message;
check(missing.response.status === 404 && message?.endsWith("없습니다."), "Korean");
