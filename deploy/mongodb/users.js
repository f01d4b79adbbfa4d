// The user of recommendation, made by the official image at the first start of compose.yaml's MongoDB. The service keeps
// its documents, indexes and transactions in this one database. docs/operations/servers.md says what to do with a volume
// that is older than this file.
db.getSiblingDB("admin").createUser({
  user: "recommendation",
  pwd: process.env.MONGODB_RECOMMENDATION_PASSWORD,
  roles: [{ role: "readWrite", db: "tourin_recommendation" }],
});
